"""The room of C: system calls, the kernel's structs, and nothing else. One module, ``kernel``
(kernel.c; kernel.pyi says what it gives).

The build compiles it wherever fusejournal is installed, also where it compiles nothing else
(scripts/build_backend.py). It imports nothing of the package."""
