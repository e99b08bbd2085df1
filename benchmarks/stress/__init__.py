"""Programs that check rather than measure: does trionode hold what it promises while everything goes wrong?"""
