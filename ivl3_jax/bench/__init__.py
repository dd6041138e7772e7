"""Speed of kernels: on the device at hand by the clock, on TPUs by the schedule that the compiler dumps.

The flags of that dump are undocumented; nothing but measurements of this package's own kernels rests on them.
"""
