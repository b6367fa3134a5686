"""What happens around sampling: who is asked, how often, and what a completion begins with.

The rules themselves are pure functions of `jgrpo.algo`; here they meet tokens and memory.
"""
