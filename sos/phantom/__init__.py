"""Virtual patients: who they are, what is drawn, how a scanner shows it, and how they are written as DICOM."""
