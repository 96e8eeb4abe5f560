"""From a budget to a model that fits: candidates, measurements, the search among them, and its report.

`tune` goes through the stages of `planner`, which decides what to do next from the journal alone; `engine`
does it. What was decided for a model is kept as a `Recipe`.
"""
