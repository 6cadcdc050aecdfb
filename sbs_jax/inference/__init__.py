"""Using a trained student: labels, confidences and explanations, for files and over HTTP.

`predictor` asks the network, `batch` goes through a file or a task, `interactive` sits at a
terminal, `serving` answers requests. Nothing here imports TensorFlow, unless a task has to be read.
"""
