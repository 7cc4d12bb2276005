import type { Session, SessionStatus, StopReason } from '@holdfast/contracts';
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
};

export function StatusBadge(props: { status: SessionStatus; stopReason: Session['x_stop_reason'] }) {
  const { text, tone, dot } =
    props.status === 'idle' && props.stopReason !== null ? STOPPED[props.stopReason.type] : LOOKS[props.status];
  return (
    <Badge tone={tone} className="whitespace-nowrap">
      {dot === undefined ? null : <span className={cn('size-1.5 rounded-full bg-current', dot)} aria-hidden />}
      {text}
    </Badge>
  );
}
