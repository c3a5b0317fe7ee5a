"""The data sets that `--dataset` names, one file each.

`digits` is part of the package. The others are looked for under one folder, given by `--data-dir` or the
environment variable `REFIMPL_DATA`, which holds a folder per data set:

    mnist/       train-images-idx3-ubyte and the three others
    cifar-10/    data_batch_1..5, test_batch (and batches.meta);
                 or cifar-10-batches-py/, or the archive cifar-10-python.tar.gz;
                 or the binary version: the same with .bin, cifar-10-batches-bin/, cifar-10-binary.tar.gz
    cifar-100/   train, test (and meta), likewise; cifar-100-python or -binary as folder or .tar.gz
    omniglot/    images_background and images_evaluation, as .zip or as folders

Files may be packed with gzip, xz, bzip2 or zip, and archives may be tar or zip; their content decides which.
`places` says under which other names and in which nested folders they are found.
"""
