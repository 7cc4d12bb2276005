'use client';
import type { Agent, Environment, Session } from '@holdfast/contracts';
import { useMutation } from '@tanstack/react-query';
import { MessagesSquare, Plus } from 'lucide-react';
import Link from 'next/link';
import { useRouter } from 'next/navigation';
import { useState } from 'react';
import { toast } from 'sonner';
import { apiPersistent, messageOf } from '../lib/api.ts';
import { number, seconds } from '../lib/format.ts';
import { Paged, usePages } from './paged.tsx';
import { StatusBadge } from './status-badge.tsx';
import { Button, Empty, Field, Modal, PageHeader, Panel, Select, TextArea, Time } from './ui.tsx';

const FILTERS = [
  { text: 'All', query: '' },
  { text: 'Running', query: '&statuses[]=running&statuses[]=rescheduling' },
  { text: 'Idle', query: '&statuses[]=idle' },
  { text: 'With archived', query: '&include_archived=true' },
];

export function SessionsPage() {
  const [filter, setFilter] = useState(0);
  const [starting, setStarting] = useState(false);
  const query = FILTERS[filter]?.query ?? '';
  const list = usePages<Session>(['sessions', query], `/v1/sessions?limit=50${query}`, 2_000);
  const start = (
    <Button look="primary" onClick={() => setStarting(true)}>
      <Plus className="size-4" aria-hidden /> Start a session
    </Button>
  );
  return (
    <div className="mx-auto w-full max-w-6xl p-4 md:p-6">
      <PageHeader title="Sessions" about="Each one is a log of events; what dies is taken over, and the log goes on.">
        {start}
      </PageHeader>
      <div role="group" aria-label="Filter" className="mb-3 flex flex-wrap gap-1.5">
        {FILTERS.map(({ text }, i) => (
          <Button
            key={text}
            size="small"
            look={i === filter ? 'primary' : 'plain'}
            aria-pressed={i === filter}
            onClick={() => setFilter(i)}
          >
            {text}
          </Button>
        ))}
      </div>
      <Panel className="overflow-hidden">
        <Paged
          list={list}
          empty={
            <Empty icon={<MessagesSquare />} title={filter === 0 ? 'No sessions yet' : 'No session matches'}>
              {filter === 0 ? (
                <>
                  <p>Start one with an agent and a first message, here or with the API.</p>
                  {start}
                </>
              ) : null}
            </Empty>
          }
        >
          <ul className="divide-y">
            {list.items.map((session) => (
              <li key={session.id}>
                <Link
                  href={`/sessions/${session.id}`}
                  className="grid grid-cols-[minmax(0,1fr)_auto] items-center gap-x-4 gap-y-1 px-4 py-3 hover:bg-raised/60 md:grid-cols-[minmax(0,1fr)_11rem_7rem_7rem_8rem]"
                >
                  <span className="min-w-0">
                    <span className="block truncate font-medium">{session.title ?? 'Untitled session'}</span>
                    <span className="block truncate font-mono text-xs text-soft">{session.id}</span>
                  </span>
                  <span className="hidden truncate text-sm text-soft md:block">{session.agent.name}</span>
                  <span className="justify-self-end md:justify-self-start">
                    <StatusBadge
                      status={session.status}
                      needsYou={session.status === 'idle' && session.x_stop_reason?.type === 'requires_action'}
                    />
                  </span>
                  <span className="hidden text-sm text-soft md:block" title="Tokens in and out">
                    {number(session.usage.input_tokens + session.usage.output_tokens)} tok
                    <span className="block text-xs">{seconds(session.stats.active_seconds)} active</span>
                  </span>
                  <span className="hidden text-right text-sm text-soft md:block">
                    <Time at={session.created_at} />
                  </span>
                </Link>
              </li>
            ))}
          </ul>
        </Paged>
      </Panel>
      <StartSession open={starting} onClose={() => setStarting(false)} />
    </div>
  );
}

export function StartSession(props: { open: boolean; onClose: () => void; agentId?: string }) {
  return (
    <Modal open={props.open} onClose={props.onClose} title="Start a session">
      <StartForm {...(props.agentId === undefined ? {} : { agentId: props.agentId })} />
    </Modal>
  );
}

function StartForm(props: { agentId?: string }) {
  const router = useRouter();
  const agents = usePages<Agent>(['agents', 'pick'], '/v1/agents?limit=100');
  const environments = usePages<Environment>(['environments', 'pick'], '/v1/environments?limit=100');
  const [agentId, setAgentId] = useState(props.agentId ?? '');
  const [environmentId, setEnvironmentId] = useState('');
  const [prompt, setPrompt] = useState('');
  const [key] = useState(() => crypto.randomUUID());
  const chosenAgent = agentId === '' ? (agents.items[0]?.id ?? '') : agentId;
  const start = useMutation({
    mutationFn: () =>
      apiPersistent<Session>(
        '/sessions',
        {
          agent_id: chosenAgent,
          ...(prompt.trim() === '' ? {} : { prompt, title: prompt.trim().split('\n')[0]?.slice(0, 80) ?? '' }),
          ...(environmentId === '' ? {} : { environment_id: environmentId }),
        },
        key,
      ),
    onSuccess: (session) => router.push(`/sessions/${session.id}`),
    onError: (error) => toast.error(messageOf(error)),
  });
  if (!agents.isPending && agents.items.length === 0) {
    return (
      <Empty icon={<MessagesSquare />} title="There is no agent yet">
        <Link className="text-accent underline" href="/agents/new">
          Create the first agent
        </Link>
      </Empty>
    );
  }
  return (
    <form
      className="space-y-4"
      onSubmit={(event) => {
        event.preventDefault();
        start.mutate();
      }}
    >
      <Field label="Agent">
        <Select value={chosenAgent} onChange={(event) => setAgentId(event.target.value)} required>
          {agents.items.map((agent) => (
            <option key={agent.id} value={agent.id}>
              {agent.name} · {agent.model.id}
            </option>
          ))}
        </Select>
      </Field>
      <Field label="Environment">
        <Select value={environmentId} onChange={(event) => setEnvironmentId(event.target.value)}>
          <option value="">default</option>
          {environments.items
            .filter((environment) => environment.name !== 'default')
            .map((environment) => (
              <option key={environment.id} value={environment.id}>
                {environment.name}
              </option>
            ))}
        </Select>
      </Field>
      <Field label="First message" hint="May be empty: the session then waits for you.">
        <TextArea rows={5} value={prompt} onChange={(event) => setPrompt(event.target.value)} />
      </Field>
      <div className="flex justify-end">
        <Button look="primary" type="submit" busy={start.isPending} disabled={chosenAgent === ''}>
          Start
        </Button>
      </div>
    </form>
  );
}
