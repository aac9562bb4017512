"""The commands of `megasr`, one file each. Together with megasr.cli they are the composition root of the project:
the only files of this package that may import data_pipelines and ablations, inside functions."""
