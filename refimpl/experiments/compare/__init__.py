"""Several methods, or settings of one, over several seeds, summed up as the rows of the paper's tables.

`plan` says what is compared; `run` trains and adapts what a folder does not hold yet; `summary` makes rows
of it; `layout` writes them as tables.

Accuracy is that of the last round's meta-model after adaptation, on the target nodes' test parts: first
the mean over nodes, then mean and spread (standard deviation) over seeds. Never the best round.
"""
