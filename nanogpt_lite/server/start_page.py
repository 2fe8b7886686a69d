"""The page at the root: what this is, and how to ask it. Plain HTML; it loads nothing."""

import html
from collections.abc import Sequence

PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>nanogpt_lite</title></head>
<body>
<h1>nanogpt_lite</h1>
<p>Text from your own networks, by an API in the form of OpenAI's.</p>
<h2>Models</h2>
<ul>
{models}
</ul>
<h2>Ask</h2>
<pre>curl -N {url}/v1/completions -d '{{"prompt": "To be", "max_tokens": 200, "stream": true}}'</pre>
<ul>
<li><a href="/v1/models">/v1/models</a></li>
<li>/v1/completions</li>
<li>/v1/chat/completions, if the server was started with a chat template</li>
<li>/api/inspect: how much each token of a text surprises a model, its attention and logit lens</li>
<li><a href="/api/runs">/api/runs</a></li>
<li><a href="/health">/health</a></li>
</ul>
</body>
</html>
"""


def start_page(models: Sequence[str], url: str) -> str:
    """The page. `models`: their names; `url`: under which the server was asked."""
    items = "\n".join(f"<li>{html.escape(name)}</li>" for name in models)
    return PAGE.format(models=items, url=html.escape(url))
