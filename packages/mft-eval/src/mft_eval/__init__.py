"""mft-eval: pass@k of generated programs, executed in a sandbox."""
