"""What shows the gateway at work: a reference platform to stand behind it, and the notice played as a
story."""
