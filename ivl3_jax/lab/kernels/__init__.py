"""Speed of kernels: on the device at hand by the clock, on TPUs by the compiler's own schedule."""
