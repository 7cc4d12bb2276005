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

export function ago(at: string, now = Date.now()): string {
  const elapsed = (Date.parse(at) - now) / 1_000;
  if (Math.abs(elapsed) < 5) return 'just now';
  const [unit, size] = units.find(([, length]) => Math.abs(elapsed) >= length) ?? ['second', 1];
  return relative.format(Math.round(elapsed / size), unit);
}
export const dateTime = (at: string): string => absolute.format(new Date(at));
export const timeOfDay = (at: string): string => clock.format(new Date(at));
export const number = (value: number): string => count.format(value);

export function bytes(value: number): string {
  if (value < 1_024) return `${value} B`;
  if (value < 1_048_576) return `${(value / 1_024).toFixed(1)} KiB`;
  return `${(value / 1_048_576).toFixed(1)} MiB`;
}
export function seconds(value: number): string {
  if (value < 60) return `${value.toFixed(value < 10 ? 1 : 0)} s`;
  return `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`;
}
