"""The form of requests and answers by HTTP: bodies, their fields, texts and errors as OpenAI's API has them.

What is asked becomes options of the library; what it gives becomes JSON. Nothing here computes or listens: that is in
`server`. Start reading at `completion_request`.
"""
