"""Settings of a method by search on validation nodes, with the same budget for every method.

Validation nodes are the last of the training nodes: they take no part in training, are adapted to on their
support samples and scored on their test parts. The target nodes are put away before anything is done: no
number of theirs enters a trial. (Other seeds deal the same images to other nodes.)

Only rates and the like are searched, on logarithmic scales; `rho` and `snip_keep` are not, as they trade
accuracy for work and the most accurate setting would be the one that saves nothing.
"""
