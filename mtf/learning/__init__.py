"""Learning: transitions and the deployed policy in, a better policy bundle out.

Read in this order: `problem` (what every algorithm sees), `value` (V and the TD residual), `ridge` and `step` (from
residuals to a step that the evidence carries), then one file an algorithm. `run.train` ties them together and `distil`
writes the result into one network. The formulas are in docs/method.md.
"""
