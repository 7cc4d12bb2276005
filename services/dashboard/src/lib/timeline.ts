import type { TimelineEntry } from '@holdfast/contracts';
import { bytes, number } from './format.ts';

/** An event of a session's log, or of its sandbox's. */
export interface TimelineRow extends TimelineEntry {
  readonly of: 'session' | 'sandbox';
}

/**
 * Two logs as one, by time; each keeps its own order. Of the sandbox's only what came before the last of the session's is
 * there, unless the session's is there to its end.
 */
export function mergeLogs(
  session: readonly TimelineEntry[],
  sandbox: readonly TimelineEntry[],
  isAtEnd: boolean,
): readonly TimelineRow[] {
  const rows: TimelineRow[] = [];
  let at = 0;
  for (const entry of session) {
    for (let next = sandbox[at]; next !== undefined && next.recorded_at < entry.recorded_at; next = sandbox[++at])
      rows.push({ ...next, of: 'sandbox' });
    rows.push({ ...entry, of: 'session' });
  }
  if (isAtEnd) rows.push(...sandbox.slice(at).map((entry): TimelineRow => ({ ...entry, of: 'sandbox' })));
  return rows;
}

const count = (amount: number, one: string, many: string): string => `${number(amount)} ${amount === 1 ? one : many}`;
type Data = Readonly<Record<string, unknown>>;
const num = (data: Data, name: string): number => (typeof data[name] === 'number' ? data[name] : 0);
const str = (data: Data, name: string): string => (typeof data[name] === 'string' ? data[name] : '');
const list = (data: Data, name: string): readonly unknown[] => (Array.isArray(data[name]) ? data[name] : []);

/** What became of a session's files, its sandbox and its branches, by event type, in words. */
const WORDS: Readonly<Record<string, (data: Data) => string>> = {
  'session.checkpointed': (data) => `Files kept, as they were after event ${number(num(data, 'through_version'))}`,
  'session.checkpoint_failed': (data) => str(data, 'message'),
  'session.sandbox_restored': (data) => {
    const missing = list(data, 'missing_call_ids').length;
    const lacks = missing === 0 ? '' : `; what ${count(missing, 'call', 'calls')} did to files since is lost`;
    return data['checkpoint_id'] === null
      ? `A new sandbox began empty${lacks}`
      : `A new sandbox was given the files as of event ${number(num(data, 'through_version'))}${lacks}`;
  },
  'session.outputs_kept': (data) => {
    const left = list(data, 'left_out').length;
    return `${count(list(data, 'files').length, 'output', 'outputs')} kept${left === 0 ? '' : `, ${number(left)} left out`}`;
  },
  'session.forked': (data) =>
    `Forked from event ${number(num((data['from'] ?? {}) as Data, 'version'))} of another session`,
  'session.fork_created': () => 'Another session was forked from this one',
  'sandbox.requested': () => 'A sandbox is needed',
  'sandbox.ready': (data) =>
    ['Ready', str(data, 'launch') === '' ? '' : `${str(data, 'launch')} start`, str(data, 'node')]
      .filter((part) => part !== '')
      .join(', '),
  'sandbox.waiting': (data) => str(data, 'message'),
  'sandbox.lost': (data) => `Lost: ${str(data, 'reason')}`,
  'sandbox.failed': (data) => str(data, 'reason'),
  'sandbox.suspended': (data) => `Suspended: ${str(data, 'reason')}`,
  'sandbox.destroyed': (data) => `Gone: ${str(data, 'reason')}`,
  'sandbox.checkpointed': (data) =>
    `${count(num(data, 'entries'), 'entry', 'entries')}, ${bytes(num(data, 'bytes'))}, of it ${bytes(num(data, 'new_bytes'))} new, in ${number(num(data, 'took_ms'))} ms`,
  'sandbox.checkpoint_failed': (data) => str(data, 'reason'),
  'sandbox.restored': (data) => `Files put back in ${number(num(data, 'took_ms'))} ms`,
};

/** What an event means for the session's files, sandbox and branches; null for any other. */
export function milestone({ type, data }: TimelineEntry): string | null {
  return WORDS[type]?.(data) ?? null;
}
