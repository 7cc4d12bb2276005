import { type AgentSnapshot, HARNESS_NATIVE } from '@holdfast/contracts';

const units: [Intl.RelativeTimeFormatUnit, number][] = [
  ['day', 86_400],
  ['hour', 3_600],
  ['minute', 60],
  ['second', 1],
];
const relative = new Intl.RelativeTimeFormat('en', { numeric: 'auto', style: 'short' });
const absolute = new Intl.DateTimeFormat('en', { dateStyle: 'medium', timeStyle: 'medium' });
const clock = new Intl.DateTimeFormat('en', { hour: '2-digit', minute: '2-digit' });
const count = new Intl.NumberFormat('en');
const short = new Intl.NumberFormat('en', { notation: 'compact', maximumFractionDigits: 1 });

export function ago(at: string, now = Date.now()): string {
  const elapsed = (Date.parse(at) - now) / 1_000;
  if (Math.abs(elapsed) < 5) return 'just now';
  const [unit, size] = units.find(([, length]) => Math.abs(elapsed) >= length) ?? ['second', 1];
  return relative.format(Math.round(elapsed / size), unit);
}
export const dateTime = (at: string): string => absolute.format(new Date(at));
export const timeOfDay = (at: string): string => clock.format(new Date(at));
export const number = (value: number): string => count.format(value);
export const compact = (value: number): string => short.format(value);
/** Dollars; as many digits as a small sum needs to be seen. */
export const dollars = (value: number): string => `$${value.toFixed(value >= 1 ? 2 : 4)}`;

/** A prefix and the end: ids that were made one after the other differ only there. */
export function shortId(id: string): string {
  const mark = id.indexOf('_') + 1;
  return id.length - mark <= 12 ? id : `${id.slice(0, mark)}…${id.slice(-8)}`;
}

export function bytes(value: number): string {
  if (value < 1_024) return `${value} B`;
  if (value < 1_048_576) return `${(value / 1_024).toFixed(1)} KiB`;
  return `${(value / 1_048_576).toFixed(1)} MiB`;
}
export function seconds(value: number): string {
  if (value < 1) return `${Math.round(value * 1_000)} ms`;
  if (value < 60) return `${value.toFixed(value < 10 ? 1 : 0)} s`;
  const whole = Math.round(value);
  if (whole < 3_600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3_600)} h ${Math.floor((whole % 3_600) / 60)} min`;
}

/** How long after the beginning, to the millisecond where that matters. */
export function offset(from: string, to: string): string {
  const elapsedMs = Math.max(0, Date.parse(to) - Date.parse(from));
  return elapsedMs < 60_000 ? `+${(elapsedMs / 1_000).toFixed(3)} s` : `+${seconds(elapsedMs / 1_000)}`;
}

/** What an agent thinks with: its model, and the harness that runs it where that is not the platform's own. */
export function engineOf({ model, harness }: Pick<AgentSnapshot, 'model' | 'harness'>): string {
  return harness.type === HARNESS_NATIVE ? model.id : `${harness.type} · ${model.id}`;
}
