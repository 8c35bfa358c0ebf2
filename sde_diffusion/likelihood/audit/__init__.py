"""What `likelihood --tol` and `likelihood --ledger` need: bounds, variance components, the stopping rule."""
