/** The wait before try number `failures + 1`: doubled each time up to `maxMs`, of which a random half is taken off. */
export function backoffMs(failures: number, baseMs: number, maxMs: number, random: () => number = Math.random): number {
  const whole = Math.min(maxMs, baseMs * 2 ** Math.min(failures - 1, 30));
  return whole * (0.5 + random() / 2);
}
