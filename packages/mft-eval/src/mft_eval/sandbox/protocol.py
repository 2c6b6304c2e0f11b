"""What both sides of a sandbox's walls know, for whoever needs no more of the other side; standard library only."""

# Asked of a nursery with this many descriptors, and its answers.
START, STARTED, NOT_STARTED = b"s", b"+", b"-"
NUM_DESCRIPTORS = 5
# A host's first frame.
READY = b"ready"
# Of the word that a test beside the program hands back.
NONCE_BYTES = 32
BUILD_SECONDS = 60
