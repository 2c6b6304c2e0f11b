"""What becomes of every stored tensor, decided and checked before any of them is computed."""
