"""Separation networks: Sepscene's TDCN++ and imported separators, their folders of weights and their import."""
