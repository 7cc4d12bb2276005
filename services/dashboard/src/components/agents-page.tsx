'use client';
import type { Agent } from '@holdfast/contracts';
import { Bot, Plus } from 'lucide-react';
import Link from 'next/link';
import { useState } from 'react';
import { engineOf } from '../lib/format.ts';
import { Paged, usePages } from './paged.tsx';
import { Badge, buttonClass, cn, Empty, Id, PageHeader, Panel, rowLink, Segmented, Time } from './ui.tsx';

export function AgentsPage() {
  const [view, setView] = useState<'active' | 'all'>('active');
  const list = usePages<Agent>(
    ['agents', view],
    `/v1/agents?limit=50${view === 'all' ? '&include_archived=true' : ''}`,
  );
  const create = (
    <Link className={buttonClass('primary')} href="/agents/new">
      <Plus className="size-4" aria-hidden /> New agent
    </Link>
  );
  return (
    <div className="mx-auto w-full max-w-6xl p-4 md:p-6">
      <PageHeader title="Agents" about="A model, instructions and tools. Every change is a new version.">
        {create}
      </PageHeader>
      <div className="mb-3">
        <Segmented
          label="Show"
          value={view}
          onChange={setView}
          options={[
            { value: 'active', text: 'Active' },
            { value: 'all', text: 'With archived' },
          ]}
        />
      </div>
      <Panel className="overflow-hidden">
        <Paged
          list={list}
          empty={
            <Empty icon={<Bot />} title="No agents yet">
              <p>An agent is what sessions are started with.</p>
              {create}
            </Empty>
          }
        >
          <ul className="divide-y">
            {list.items.map((agent) => (
              <li key={agent.id} className="relative flex items-center gap-4 px-4 py-2.5 hover:bg-raised/60">
                <span className="min-w-0 flex-1">
                  <span className="flex items-center gap-2">
                    <Link href={`/agents/${agent.id}`} className={cn('truncate text-sm font-medium', rowLink)}>
                      {agent.name}
                    </Link>
                    {agent.archived_at === null ? null : <Badge>Archived</Badge>}
                  </span>
                  <span className="block truncate text-xs leading-6 text-soft">
                    {agent.description ?? agent.system ?? 'No description'}
                  </span>
                </span>
                <Id id={agent.id} className="relative hidden lg:inline-flex" />
                <span className="hidden max-w-60 truncate text-sm text-soft sm:block">{engineOf(agent)}</span>
                <Badge className="tabular-nums">v{agent.version}</Badge>
                <span className="hidden w-24 text-right text-sm text-soft sm:block">
                  <Time at={agent.updated_at} />
                </span>
              </li>
            ))}
          </ul>
        </Paged>
      </Panel>
    </div>
  );
}
