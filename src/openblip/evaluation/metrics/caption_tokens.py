import re
from functools import lru_cache
from openblip.evaluation.metrics.ptb_rules import RULES
_PUNCT=frozenset(["''","'","``","`",".","?","!",",",":","-","--","...",";"])
def lex(text):
    pos=0;out=[];n=len(text)
    while pos<n:
        if text[pos].isspace(): pos+=1; continue
        best=0;br=None
        for r in RULES:
            m=r.pattern.match(text,pos)
            if m and m.end()-pos>best: best=m.end()-pos; br=(r,m)
        if br is None: pos+=1; continue
        r,m=br
        tok=m.group('token'); out+=r.rewrite(tok); pos+=len(tok)
        assert tok,r
    return out
def caption_tokens(text):
    return tuple(lex(text))
