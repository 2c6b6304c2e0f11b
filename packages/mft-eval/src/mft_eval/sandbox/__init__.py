"""The sandbox and what runs inside it, next to untrusted code; standard library only."""
