"""What runs where `modal run` is started: it needs Python and the package `modal` alone.

Owns the upload of a text (`uploads`), the secrets of this machine (`local_secrets`), and the names on the Volume
(`volume_names`). What runs in containers is in the modules of `nanogpt_lite.cloud` itself. Start reading with
`uploads`.
"""
