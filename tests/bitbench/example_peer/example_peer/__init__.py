"""A plug-in of bitbench with one layer, one workload and one reporter."""
