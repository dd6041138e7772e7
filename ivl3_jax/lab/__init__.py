"""What a kernel or a sharding plan does on a machine that is not at hand, by its compiler."""
