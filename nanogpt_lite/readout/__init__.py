"""What a trained network computes on a text, token by token: surprise, attention, logit lens, the share of n-grams.

The network's own code keeps no intermediate result, so `plain_forward` computes everything again, step by step.
`expectations` is about the next token, `reading` the result for a whole text; `coloured_text` and `figures` show it.
How a run is loaded is in `api`. Start reading at `plain_forward`.
"""
