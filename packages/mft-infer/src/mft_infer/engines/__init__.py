"""What answers requests: a model in this process or a server, behind one function from requests to completions."""
