"""DaSLaM: a small model asks the sub-questions that help a large, closed one (Juneja et al. 2023, arXiv 2310.18338). `solver` works on a
task, `train` makes the small model, `rewards` are what it is trained by, `text` reads what models say, `problems` reads files."""
