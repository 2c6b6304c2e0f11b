"""`python -m mft_train`: what a launcher starts in every rank."""

from mft_train.cli import main

main(prog_name="mft-train")
