/** The product's sign. */
export function Mark() {
  return (
    <svg viewBox="0 0 32 32" className="size-6" aria-hidden="true">
      <rect width="32" height="32" rx="8" className="fill-accent" />
      <path d="M11 8v16M21 8v16M11 16h10" className="stroke-accent-ink" strokeWidth="3.2" strokeLinecap="round" />
    </svg>
  );
}
