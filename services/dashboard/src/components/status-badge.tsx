import type { SessionStatus } from '@holdfast/contracts';
import { Badge } from './ui.tsx';

const TONES = { idle: 'neutral', running: 'good', rescheduling: 'warn', terminated: 'neutral' } as const;
const TEXTS = { idle: 'Idle', running: 'Running', rescheduling: 'Retrying', terminated: 'Archived' } as const;

export function StatusBadge(props: { status: SessionStatus; needsYou?: boolean }) {
  if (props.needsYou === true) return <Badge tone="warn">Needs you</Badge>;
  return (
    <Badge tone={TONES[props.status]}>
      {props.status === 'running' ? (
        <span className="size-1.5 animate-pulse rounded-full bg-current" aria-hidden />
      ) : null}
      {TEXTS[props.status]}
    </Badge>
  );
}
