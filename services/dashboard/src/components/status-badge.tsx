import type { Sandbox, SandboxStatus, Session, SessionStatus, StopReason } from '@holdfast/contracts';
import { reasonTone } from '../lib/sandboxes.ts';
import { Badge, cn } from './ui.tsx';

type Look = { readonly text: string; readonly tone: 'neutral' | 'good' | 'warn' | 'bad'; readonly dot?: string };

const LOOKS: Readonly<Record<SessionStatus, Look>> = {
  idle: { text: 'Idle', tone: 'neutral' },
  running: { text: 'Running', tone: 'good', dot: 'animate-pulse' },
  rescheduling: { text: 'Retrying', tone: 'warn', dot: 'animate-pulse' },
  terminated: { text: 'Archived', tone: 'neutral' },
};
/** Why an idle session is idle, where that matters to whoever looks. */
const STOPPED: Readonly<Record<StopReason['type'], Look>> = {
  end_turn: LOOKS.idle,
  requires_action: { text: 'Needs you', tone: 'warn', dot: '' },
  retries_exhausted: { text: 'Failed', tone: 'bad', dot: '' },
  refusal: { text: 'Refused', tone: 'bad' },
};

const WAITS_FOR_WORKER: Look = { text: 'Waits for a worker', tone: 'neutral', dot: 'animate-pulse' };

export function StatusBadge(props: {
  status: SessionStatus;
  stopReason: Session['x_stop_reason'];
  waitsFor: Session['x_waits_for'];
}) {
  const { status, stopReason } = props;
  const look = status === 'idle' && stopReason !== null ? STOPPED[stopReason.type] : LOOKS[status];
  return <LookBadge look={props.waitsFor === 'worker' ? WAITS_FOR_WORKER : look} />;
}

const SANDBOX_LOOKS: Readonly<Record<SandboxStatus, Look>> = {
  starting: { text: 'Starting', tone: 'neutral', dot: 'animate-pulse' },
  ready: { text: 'Ready', tone: 'good', dot: '' },
  suspended: { text: 'Suspended', tone: 'neutral' },
  failed: { text: 'Failed', tone: 'bad', dot: '' },
  destroyed: { text: 'Destroyed', tone: 'neutral' },
};

/** One that is starting and cannot is news. */
export function SandboxBadge({ sandbox }: { sandbox: Pick<Sandbox, 'status' | 'reason'> }) {
  const look = SANDBOX_LOOKS[sandbox.status];
  return (
    <LookBadge
      look={sandbox.status === 'starting' && reasonTone(sandbox) === 'warn' ? { ...look, tone: 'warn' } : look}
    />
  );
}

function LookBadge({ look: { text, tone, dot } }: { look: Look }) {
  return (
    <Badge tone={tone} className="whitespace-nowrap">
      {dot === undefined ? null : <span className={cn('size-1.5 rounded-full bg-current', dot)} aria-hidden />}
      {text}
    </Badge>
  );
}
