"""The TPU compiler on a machine without a TPU."""

# Without these libtpu looks for a TPU's metadata server and prints alarming lines. It then still compiles for any
# topology, in several processes at a time.
WITHOUT_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
