"""Training on pictures of a user's, and, in `bundled/`, of the model that ships, from fetching its data on.

The extra `fewstep[train]` brings what only training needs. Nothing above imports this.
"""
