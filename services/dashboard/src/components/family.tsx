import type { Session, SessionView } from '@holdfast/contracts';
import { useQuery } from '@tanstack/react-query';
import { GitFork } from 'lucide-react';
import Link from 'next/link';
import { useState } from 'react';
import { api, type Page } from '../lib/api.ts';
import { type FamilyMember, familyTree } from '../lib/family.ts';
import { number } from '../lib/format.ts';

import { StatusBadge } from './status-badge.tsx';
import { cn, Modal, rowLink, Time } from './ui.tsx';

const LOOK_MS = 10_000;
const SHOWN = 100;

/** Where a session was forked from, and the tree of its family; nothing for a session that has none. */
export function Family({ view }: { view: SessionView }) {
  const [open, setOpen] = useState(false);
  const { data } = useQuery({
    queryKey: ['family-of', view.id],
    queryFn: ({ signal }) =>
      api<Page<Session>>(`/v1/sessions?x_family=${view.id}&include_archived=true&order=asc&limit=${SHOWN}`, { signal }),
    refetchInterval: LOOK_MS,
  });
  const from = view.forkedFrom;
  const sessions = data?.data ?? [];
  if (from === undefined && sessions.length < 2) return null;
  const parent = sessions.find(({ id }) => id === from?.session_id);
  return (
    <>
      <button
        type="button"
        className="flex min-w-0 items-center gap-1.5 hover:text-ink hover:underline"
        onClick={() => setOpen(true)}
      >
        <GitFork className="size-3.5 shrink-0" aria-hidden />
        <span className="truncate">
          {from === undefined ? '' : `forked from ${nameOf(parent)}`}
          {from !== undefined && sessions.length > 2 ? ' · ' : ''}
          {sessions.length > 2 || from === undefined ? `${number(sessions.length)} in the family` : ''}
        </span>
      </button>
      <Modal
        open={open}
        onClose={() => setOpen(false)}
        title="Forks"
        about="Every session of this family, under the one that it was forked from."
        className="w-[min(44rem,calc(100vw-2rem))]"
      >
        <ul className="-mx-2 max-h-[60vh] overflow-y-auto">
          {familyTree(sessions).map((member) => (
            <Member key={member.session.id} member={member} isHere={member.session.id === view.id} />
          ))}
        </ul>
        {data?.next_page == null ? null : <p className="mt-3 text-sm text-soft">Only the first {SHOWN} are shown.</p>}
      </Modal>
    </>
  );
}

/** A parent that is not in the family was deleted; its forks keep its events. */
function nameOf(parent: Session | undefined): string {
  return parent === undefined ? 'a session that is gone' : (parent.title ?? 'Untitled session');
}

/** Deeper lines are drawn no further in, or a long chain would leave the page. */
const MAX_INDENT = 8;

function Member({ member: { session, parent, depth }, isHere }: { member: FamilyMember; isHere: boolean }) {
  const { forked_from: from } = session;
  return (
    <li
      className={cn('relative flex items-center gap-3 rounded-lg px-2 py-2 hover:bg-raised/60', isHere && 'bg-raised')}
      aria-current={isHere ? 'page' : undefined}
    >
      {Array.from({ length: Math.min(depth, MAX_INDENT) }, (_, n) => (
        // biome-ignore lint/suspicious/noArrayIndexKey: lines of a tree, all alike
        <span key={n} className="-my-2 ml-1 w-3 shrink-0 self-stretch border-l" aria-hidden />
      ))}
      <span className="min-w-0 flex-1">
        <Link href={`/sessions/${session.id}`} className={cn('block truncate text-sm font-medium', rowLink)}>
          {session.title ?? 'Untitled session'}
          {isHere ? <span className="font-normal text-soft"> (this one)</span> : null}
        </Link>
        <span className="block truncate text-xs text-soft">
          {from === null ? 'not a fork' : `at event ${number(from.version)} of ${nameOf(parent)}`} ·{' '}
          {session.agent.name} v{session.agent.version} · <Time at={session.created_at} />
        </span>
      </span>
      <StatusBadge status={session.status} stopReason={session.x_stop_reason} waitsFor={session.x_waits_for} />
    </li>
  );
}
