import type { Sandbox, SandboxReasonCode } from '@holdfast/contracts';

const REASONS: Readonly<Record<SandboxReasonCode, string>> = {
  unschedulable: 'no node can take it',
  'image-pull': 'its image cannot be pulled',
  'quota-exceeded': 'the quota of the workspace is used up',
  'crash-loop': 'its runner ends again and again',
  'cluster-unreachable': 'the cluster does not answer',
  'cluster-refused': 'the cluster refuses it',
  'pool-empty': 'nothing warm was left, so it starts cold',
  'node-lost': 'its node does not answer',
  'volume-pending': 'its volume is not there yet',
  'not-linked': 'its runner has not dialled in yet',
  starting: 'it is being made',
};
/** A reason in words; one without a code says it in its message alone. */
export const reasonWords = (reason: { readonly code: SandboxReasonCode | null; readonly message: string }): string =>
  reason.code === null ? reason.message : REASONS[reason.code];

/** How much a reason matters: being made is no news, a failure is an alarm. */
export function reasonTone({ status, reason }: Pick<Sandbox, 'status' | 'reason'>): 'soft' | 'warn' | 'bad' {
  if (status === 'failed') return 'bad';
  return reason === null || reason.code === 'starting' ? 'soft' : 'warn';
}
export const TONE_TEXT = { soft: 'text-soft', warn: 'text-warn', bad: 'text-bad' } as const;

export const LAUNCHES: Readonly<Record<NonNullable<Sandbox['launch']>, string>> = {
  warm: 'taken from the pool',
  cold: 'made when it was asked for',
  resumed: 'woken with its files',
};

/** Where it runs; null when it runs nowhere. */
export function placeOf(sandbox: Sandbox): string | null {
  if (sandbox.node !== null || sandbox.pod !== null) return sandbox.node ?? sandbox.pod;
  return sandbox.provider === 'local' && sandbox.status !== 'destroyed' ? 'this machine' : null;
}
