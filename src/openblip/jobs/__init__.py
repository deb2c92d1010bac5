"""Long work in parts, on workers that come and go: driver, ledger, lock, pools."""
