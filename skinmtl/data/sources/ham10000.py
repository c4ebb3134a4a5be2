"""What is known of HAM10000: its diagnoses, and where it comes from."""

DX = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
HOW_TO_GET = (
    "get HAM10000 from the Harvard Dataverse (doi 10.7910/DVN/DBW86T, CC BY-NC 4.0), unpack it there or point "
    "data.root at it; or try without it: experiment=demo"
)
