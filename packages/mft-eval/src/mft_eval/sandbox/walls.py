"""What can stand between a program and the machine; standard library only."""

# Namespaces of its own inside bubblewrap's; Landlock and a filter of system calls; nothing.
NAMESPACES, LANDLOCK, NONE = "namespaces", "landlock", "none"
