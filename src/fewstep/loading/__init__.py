"""Files → networks in memory: folders, single files and diffusers pipelines."""
