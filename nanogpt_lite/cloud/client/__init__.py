"""What runs where `modal run` is started: it needs Python and the package `modal` alone.

`plans` turns the flags of a call into a plan, with the checks in `checks`, the text in `dataset_texts`, what is on the
Volume in `stored_files`, and what the call rents in `rental`. `housekeeping` lists, downloads and deletes runs.
`entry_points` joins local entry points and Functions. What runs in containers is in the modules of `nanogpt_lite.cloud`
itself; they too use `rental` and `volume_names`. Start reading with `plans`.
"""
