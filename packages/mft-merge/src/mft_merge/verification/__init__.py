"""The merged model against the live one of base and adapters, in memory or from the disk."""
