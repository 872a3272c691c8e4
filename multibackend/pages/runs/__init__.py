"""The page of one run or several: `multibackend report RUN_DIR [RUN_DIR ...]`, and the figure of `FitResult.plot`."""
