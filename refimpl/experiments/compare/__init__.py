"""Compare several methods, or settings of one method, over several seeds, as in the paper's tables.

`plan` says what is compared; `run` trains and adapts what is missing in the comparison's folder; `summary`
makes the rows of the tables; `layout` writes the tables.

Accuracy is that of the last round's meta-model after adaptation, on the target nodes' test parts: first
the mean over nodes, then mean and spread (standard deviation) over seeds. Never the best round.
"""
