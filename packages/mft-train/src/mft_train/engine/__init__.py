"""Ways of spreading a run over processes: who this process is, and what each way does with gradients and weights.

The loop knows no way by its name: it calls the verbs that every way has.
"""
