import { type Chat, type Sandbox, type SessionView, type SessionWorker, waitsFor } from '@holdfast/contracts';
import { keepPreviousData, useMutation, useQuery } from '@tanstack/react-query';
import { ArrowLeft, Box, Folder, List, MoreHorizontal, Server } from 'lucide-react';
import Link from 'next/link';
import { useRouter } from 'next/navigation';
import { DropdownMenu } from 'radix-ui';
import { useState } from 'react';
import { toast } from 'sonner';
import { api, messageOf, type Page } from '../lib/api.ts';
import { useFork } from '../lib/forks.ts';
import { compact, dateTime, dollars, engineOf, number, seconds } from '../lib/format.ts';
import { LAUNCHES, placeOf, reasonTone, reasonWords, TONE_TEXT } from '../lib/sandboxes.ts';
import type { Connection } from '../lib/session-stream.ts';
import { Family } from './family.tsx';
import { MenuContent, MenuItem } from './menu.tsx';
import { Snippets, sessionSnippets } from './snippets.tsx';
import { SandboxBadge, StatusBadge } from './status-badge.tsx';
import { Button, buttonClass, Confirm, cn, Fact, Facts, Field, FormError, Id, Input, Modal, Time } from './ui.tsx';

type Open = 'details' | 'rename' | 'archive' | 'delete' | null;

export function ChatHeader({ chat, connection }: { chat: Chat; connection: Connection }) {
  const { view } = chat;
  const router = useRouter();
  const [open, setOpen] = useState<Open>(null);
  const close = () => setOpen(null);
  const path = `/v1/sessions/${view.id}`;
  const end = useMutation({
    mutationFn: (how: 'archive' | 'delete') =>
      how === 'delete' ? api(path, { method: 'DELETE' }) : api(`${path}/archive`, { method: 'POST' }),
    onSuccess: (_, how) => {
      close();
      if (how === 'delete') router.push('/sessions');
    },
    onError: (error) => toast.error(messageOf(error)),
  });
  const { fork } = useFork(view.id);
  const isRunning = view.status === 'running' || view.status === 'rescheduling';
  const sandbox = useSandbox(chat);
  const worker = useWorker(view);
  const { usage } = view;
  return (
    <header className="border-b bg-panel px-3 py-2 md:px-4">
      <div className="flex items-center gap-2">
        <Link
          href="/sessions"
          aria-label="All sessions"
          className="-ml-1 rounded-lg p-1.5 text-soft hover:bg-raised hover:text-ink"
        >
          <ArrowLeft className="size-4" aria-hidden />
        </Link>
        <h1 className="min-w-0 truncate font-semibold">{view.title ?? 'Untitled session'}</h1>
        <span role="status" className="flex flex-1 items-center gap-2">
          <StatusBadge status={view.status} stopReason={view.stopReason} waitsFor={waitsFor(view)} />
          {connection === 'reconnecting' || connection === 'connecting' ? (
            <span className="text-xs whitespace-nowrap text-warn">
              {connection === 'connecting' ? 'Connecting…' : 'Reconnecting…'}
            </span>
          ) : null}
        </span>
        <Link className={buttonClass('ghost', 'small')} href={`/sessions/${view.id}/timeline`}>
          <List className="size-4" aria-hidden /> <span className="sr-only sm:not-sr-only">Timeline</span>
        </Link>
        <Link className={buttonClass('ghost', 'small')} href={`/sessions/${view.id}/files`}>
          <Folder className="size-4" aria-hidden /> <span className="sr-only sm:not-sr-only">Files</span>
        </Link>
        <DropdownMenu.Root>
          <DropdownMenu.Trigger asChild>
            <Button size="icon" look="ghost" className="size-7" aria-label="More actions">
              <MoreHorizontal className="size-4" aria-hidden />
            </Button>
          </DropdownMenu.Trigger>
          <MenuContent>
            <MenuItem onSelect={() => setOpen('details')}>Details and API</MenuItem>
            <MenuItem onSelect={() => fork({ at_version: view.version })}>Fork</MenuItem>
            <MenuItem onSelect={() => setOpen('rename')} disabled={view.archivedAt !== null || isRunning}>
              Rename
            </MenuItem>
            <MenuItem onSelect={() => setOpen('archive')} disabled={view.archivedAt !== null || isRunning}>
              Archive
            </MenuItem>
            <MenuItem className="text-bad" onSelect={() => setOpen('delete')} disabled={isRunning}>
              Delete
            </MenuItem>
          </MenuContent>
        </DropdownMenu.Root>
      </div>
      <div className="flex flex-wrap items-center gap-x-4 pl-8 text-xs text-soft">
        <p className="min-w-0 truncate">
          <Link className="hover:text-ink hover:underline" href={`/agents/${view.agent.id}`}>
            {view.agent.name} v{view.agent.version}
          </Link>{' '}
          · {engineOf(view.agent)} ·{' '}
          <span title={`${number(usage.input_tokens)} tokens in, ${number(usage.output_tokens)} out`}>
            {compact(usage.input_tokens)} in, {compact(usage.output_tokens)} out
          </span>
          {usage.x_cost_usd === undefined ? '' : ` · ${dollars(usage.x_cost_usd)}`}
        </p>
        {sandbox === null ? null : <Whereabouts sandbox={sandbox} />}
        {worker === null ? null : <WorkerLine worker={worker} />}
        <Family view={view} />
      </div>
      <Modal
        open={open === 'details'}
        onClose={close}
        title="Session details"
        className="w-[min(44rem,calc(100vw-2rem))]"
      >
        <Details view={view} sandbox={sandbox} worker={worker} />
      </Modal>
      <Modal open={open === 'rename'} onClose={close} title="Rename the session">
        <RenameForm path={path} title={view.title ?? ''} onDone={close} />
      </Modal>
      <Confirm
        open={open === 'archive' || open === 'delete'}
        title={open === 'delete' ? 'Delete this session?' : 'Archive this session?'}
        about={
          open === 'delete'
            ? 'Its sandbox and files are removed and it leaves every list. This cannot be undone.'
            : 'It takes no more messages; its events stay readable. Its sandbox is removed. This cannot be undone.'
        }
        action={open === 'delete' ? 'Delete' : 'Archive'}
        busy={end.isPending}
        onConfirm={() => end.mutate(open === 'delete' ? 'delete' : 'archive')}
        onClose={close}
      />
    </header>
  );
}

const LOOK_MS = 2_000;
const IDLE_LOOK_MS = 10_000;

/** The session's sandbox while it has one; looked at again with every change of what the session does. */
function useSandbox({ view, wait }: Chat): Sandbox | null {
  const query = useQuery({
    enabled: view.worker === undefined,
    queryKey: ['sandbox-of', view.id, view.status, wait?.reason],
    queryFn: ({ signal }) => api<Page<Sandbox>>(`/v1/x/sandboxes?session_id=${view.id}&limit=1`, { signal }),
    refetchInterval: view.archivedAt !== null ? false : view.status === 'running' ? LOOK_MS : IDLE_LOOK_MS,
    placeholderData: keepPreviousData,
  });
  return query.data?.data[0] ?? null;
}

/** Who runs a self-hosted session's tools; null of one whose tools the platform runs. */
function useWorker(view: SessionView): SessionWorker | null {
  const query = useQuery({
    enabled: view.worker !== undefined,
    queryKey: ['worker-of', view.id, view.worker?.calls.length],
    queryFn: ({ signal }) => api<SessionWorker>(`/v1/sessions/${view.id}/x/worker`, { signal }),
    refetchInterval: view.archivedAt !== null ? false : view.worker?.since === null ? IDLE_LOOK_MS : LOOK_MS,
    placeholderData: keepPreviousData,
  });
  return query.data ?? null;
}

/** What the worker of a self-hosted session does, in words. */
function WorkerWords({ worker: { work, worker_id, workers_polling, waiting_calls } }: { worker: SessionWorker }) {
  if (work !== null)
    return (
      <>
        {worker_id ?? 'a worker without a name'}
        {work.latest_heartbeat_at === null ? (
          ', no heartbeat yet'
        ) : (
          <>
            , last heard of <Time at={work.latest_heartbeat_at} />
          </>
        )}
      </>
    );
  if (workers_polling === 0) return 'no worker is polling';
  return waiting_calls.length === 0 ? 'not needed now' : 'one takes it in a moment';
}

function WorkerLine({ worker }: { worker: SessionWorker }) {
  const isMissing = worker.work === null && worker.workers_polling === 0 && worker.waiting_calls.length > 0;
  return (
    <span className={cn('flex min-w-0 items-center gap-1.5', isMissing && 'text-warn')}>
      <Server className="size-3.5 shrink-0" aria-hidden />
      <span className="truncate">
        self-hosted worker · <WorkerWords worker={worker} />
      </span>
    </span>
  );
}

/** Where a session's tools run, or why they do not. */
function Whereabouts({ sandbox }: { sandbox: Sandbox }) {
  const { reason, status, launch } = sandbox;
  const about =
    reason !== null ? reasonWords(reason) : [placeOf(sandbox), launch].filter((part) => part !== null).join(', ');
  return (
    <Link
      href={`/sandboxes/${sandbox.id}`}
      aria-label={`Sandbox: ${status}${about === '' ? '' : `, ${about}`}`}
      className={cn('flex min-w-0 items-center gap-1.5 hover:text-ink hover:underline', TONE_TEXT[reasonTone(sandbox)])}
    >
      <Box className="size-3.5 shrink-0" aria-hidden />
      <span className="truncate">
        {status}
        {about === '' ? '' : ` · ${about}`}
      </span>
    </Link>
  );
}

function Details(props: { view: SessionView; sandbox: Sandbox | null; worker: SessionWorker | null }) {
  const { view, sandbox, worker } = props;
  const { usage } = view;
  return (
    <div className="space-y-5">
      <Facts>
        <Fact name="Id">
          <Id id={view.id} />
        </Fact>
        <Fact name="Agent">
          {view.agent.name} v{view.agent.version} <Id id={view.agent.id} />
        </Fact>
        <Fact name="Environment">
          <Id id={view.environmentId} />
        </Fact>
        {sandbox === null ? null : (
          <Fact name="Sandbox">
            <SandboxBadge sandbox={sandbox} /> {placeOf(sandbox)}
            {sandbox.launch === null ? '' : `, ${LAUNCHES[sandbox.launch]}`} <Id id={sandbox.id} />
          </Fact>
        )}
        {worker === null ? null : (
          <Fact name="Self-hosted worker">
            <WorkerWords worker={worker} /> {worker.work === null ? null : <Id id={worker.work.id} />}
          </Fact>
        )}
        {view.contextKey === null ? null : <Fact name="Context">{view.contextKey}</Fact>}
        <Fact name="Created">
          {dateTime(view.createdAt)}, <Time at={view.createdAt} />
        </Fact>
        <Fact name="Active">{seconds(view.activeMs / 1_000)}</Fact>
        <Fact name="Tokens">
          {number(usage.input_tokens)} in, {number(usage.output_tokens)} out, {number(usage.cache_read_input_tokens)}{' '}
          read from cache
        </Fact>
        <Fact name="Cost">
          {usage.x_cost_usd === undefined ? 'The model gateway states none' : dollars(usage.x_cost_usd)}
        </Fact>
        {Object.entries(view.metadata).map(([name, value]) => (
          <Fact key={name} name={name}>
            {value}
          </Fact>
        ))}
      </Facts>
      <div className="space-y-2">
        <h2 className="text-sm font-medium">Drive it over the API</h2>
        <p className="text-sm text-soft">With an API key of this workspace in HOLDFAST_API_KEY.</p>
        <Snippets snippets={sessionSnippets(view.id)} />
      </div>
    </div>
  );
}

function RenameForm(props: { path: string; title: string; onDone: () => void }) {
  const [title, setTitle] = useState(props.title);
  const rename = useMutation({
    mutationFn: () => api(props.path, { body: { title: title.trim() === '' ? null : title.trim() } }),
    onSuccess: props.onDone,
  });
  return (
    <form
      className="space-y-4"
      onSubmit={(event) => {
        event.preventDefault();
        rename.mutate();
      }}
    >
      <Field label="Title">
        <Input value={title} onChange={(event) => setTitle(event.target.value)} maxLength={256} />
      </Field>
      {rename.isError ? <FormError text={messageOf(rename.error)} /> : null}
      <div className="flex justify-end">
        <Button look="primary" type="submit" busy={rename.isPending}>
          Rename
        </Button>
      </div>
    </form>
  );
}
