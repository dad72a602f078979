"""Code in C++ that a CPU runs in place of many small operations, compiled for the machine that runs it."""
